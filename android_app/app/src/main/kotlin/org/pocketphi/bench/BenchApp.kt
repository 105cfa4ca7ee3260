package org.pocketphi.bench

import android.app.Activity
import android.app.Application
import android.os.Bundle
import android.os.Process
import org.pocketphi.core.Build
import org.pocketphi.core.Contract
import org.pocketphi.core.EngineFactory
import org.pocketphi.core.NativeEngine
import org.pocketphi.core.PackedWeights
import org.pocketphi.core.Probes
import org.pocketphi.core.ResultFiles
import org.pocketphi.core.Surroundings
import java.io.File

/** Holds what outlives the screens: the run, the conversation, the copy under way. */
class BenchApp : Application() {
    /** Tests put others in. */
    var engines = EngineFactory { model, tokenizer, manifest, settings ->
        if (ownEngine) NativeEngine(model, tokenizer, packed.folder, settings) else ExecuTorchEngine(model, tokenizer, manifest)
    }

    /** Whether ExecuTorch's library in this build has our engine in it; else upstream's LlmModule does the running. */
    var ownEngine: Boolean = try {
        System.loadLibrary("executorch")
        NativeEngine.isThere()
    } catch (_: LinkageError) {
        false
    }
    val engineName: String get() = if (ownEngine) NativeEngine.NAME else ExecuTorchEngine.NAME

    /** Survives what empties caches, and is no backup's business. */
    val packed by lazy { PackedWeights(File(noBackupFilesDir, "packed")) }
    val settings by lazy { SettingsStore(this) }

    lateinit var probes: Probes
    var sampleEveryMs = 2000L

    val runs by lazy { RunHolder(this) }
    val chat by lazy { ChatHolder(this) }
    val media by lazy { MediaHolder(this) }
    val imports by lazy { ImportHolder(this) }

    val version: String by lazy { packageManager.getPackageInfo(packageName, 0).versionName.orEmpty() }

    // Without external storage there is still a place; adb cannot see it, the app can.
    private val ownFiles: File get() = getExternalFilesDir(null) ?: filesDir
    val results: ResultFiles get() = ResultFiles(File(ownFiles, "results"))
    val models: File get() = File(ownFiles, "models")

    fun surroundings() = Surroundings(
        DeviceProbes.device(this), Build(packageName, version, engineName, ExecuTorchEngine.EXECUTORCH),
        Process.myPid(), engines, probes, results, sampleEveryMs = sampleEveryMs, packed = packed.takeIf { ownEngine },
    )

    override fun onCreate() {
        super.onCreate()
        probes = DeviceProbes(this)
        registerActivityLifecycleCallbacks(Background())
    }

    override fun onTrimMemory(level: Int) {
        super.onTrimMemory(level)
        TrimLevel.name(level)?.let { runs.lowMemory(it) }
    }

    override fun onLowMemory() {
        super.onLowMemory()
        runs.lowMemory("low_memory")
    }

    /** A run goes on without a screen, but slower: the system gives background processes fewer cores. */
    private inner class Background : ActivityLifecycleCallbacks {
        private var started = 0

        override fun onActivityStarted(activity: Activity) {
            started++
        }

        override fun onActivityStopped(activity: Activity) {
            started--
            if (started == 0 && !activity.isChangingConfigurations) runs.note(Contract.current.note("background"))
        }

        override fun onActivityCreated(activity: Activity, state: Bundle?) = Unit
        override fun onActivityResumed(activity: Activity) = Unit
        override fun onActivityPaused(activity: Activity) = Unit
        override fun onActivitySaveInstanceState(activity: Activity, state: Bundle) = Unit
        override fun onActivityDestroyed(activity: Activity) = Unit
    }
}

val Activity.app: BenchApp get() = application as BenchApp

/** ComponentCallbacks2's levels, whose constants newer systems call deprecated but still send. */
object TrimLevel {
    private const val UI_HIDDEN = 20

    /** Null where the level says nothing about memory. */
    fun name(level: Int): String? = when {
        level == UI_HIDDEN -> null
        level >= 80 -> "complete"
        level >= 60 -> "moderate"
        level >= 40 -> "background"
        level >= 15 -> "running_critical"
        level >= 10 -> "running_low"
        level >= 5 -> "running_moderate"
        else -> null
    }
}
