# -DCMAKE_PROJECT_executorch_jni_INCLUDE=this file takes us into ExecuTorch's build, where it makes its JNI library; there
# -DEXECUTORCH_JNI_CUSTOM_LIBRARY=pocketphi_jni puts our functions into that.
add_subdirectory("${CMAKE_CURRENT_LIST_DIR}" pocketphi_jni)
