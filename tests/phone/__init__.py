"""A phone for adb: the real adbd of a Debian folder, and stand-ins for the programs of Android called there."""
