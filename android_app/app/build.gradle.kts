import org.jetbrains.kotlin.gradle.dsl.JvmTarget

plugins {
    alias(libs.plugins.android.application)
    alias(libs.plugins.kotlin.android)
}

/** A key of your own: -Ppocketphi.keystore=FILE and the three passwords and names below, or the same in ~/.gradle/gradle.properties. */
val keystore = providers.gradleProperty("pocketphi.keystore").orNull

/** ExecuTorch's AAR from a source build with our engine in its library (README.md): -Ppocketphi.aar=FILE; else Maven's. */
val ownAar = providers.gradleProperty("pocketphi.aar").orNull

android {
    namespace = "org.pocketphi.bench"
    compileSdk = 34

    defaultConfig {
        applicationId = "org.pocketphi.bench"
        minSdk = 26 // Android 8, which the AAR's library is built for
        targetSdk = 34
        versionCode = 1
        versionName = "0.1.0"
        ndk {
            abiFilters += listOf("arm64-v8a", "x86_64")
        }
    }

    signingConfigs {
        if (keystore != null) {
            create("own") {
                storeFile = file(keystore)
                storePassword = providers.gradleProperty("pocketphi.keystore.password").get()
                keyAlias = providers.gradleProperty("pocketphi.key").get()
                keyPassword = providers.gradleProperty("pocketphi.key.password").get()
            }
        }
    }

    buildTypes {
        release {
            // The debug key lets the APK install on your own phone; no store takes it.
            signingConfig = signingConfigs.getByName(if (keystore != null) "own" else "debug")
            isMinifyEnabled = false
            proguardFiles("proguard-rules.pro")
        }
    }

    compileOptions {
        sourceCompatibility = JavaVersion.VERSION_17
        targetCompatibility = JavaVersion.VERSION_17
    }
}

kotlin {
    compilerOptions {
        jvmTarget.set(JvmTarget.JVM_17)
    }
}

dependencies {
    implementation(project(":core"))
    if (ownAar == null) {
        implementation(libs.executorch.android)
    } else {
        implementation(files(ownAar))
        implementation(libs.bundles.executorch.needs) // a file names nothing that it needs
    }
}
