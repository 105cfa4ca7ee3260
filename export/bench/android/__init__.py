"""Measuring on Android devices, over adb."""
