"""export.bench: on this machine, and on phones with the real adb and adbd."""
