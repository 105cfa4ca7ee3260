import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.kotlin.jvm)
}

java {
    sourceCompatibility = JavaVersion.VERSION_17
    targetCompatibility = JavaVersion.VERSION_17
}

kotlin {
    compilerOptions {
        jvmTarget.set(JvmTarget.JVM_17)
    }
}

// What is measured, by which rules: the file that Python and the iOS app read too.
tasks.processResources {
    from(rootProject.file("../export/bench/contract/bundled")) { into("org/pocketphi/core") }
}

dependencies {
    testImplementation(libs.junit)
}
