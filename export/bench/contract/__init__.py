"""What is measured, by which rules: data that Python, the Android app and the iOS app read."""
