// Signatures of org.pytorch:executorch-android 1.5.1, as far as the app uses them; bodies for tests only.
package org.pytorch.executorch

open class ExecutorchRuntimeException(val errorCode: Int, details: String?) : RuntimeException("code $errorCode: $details")
