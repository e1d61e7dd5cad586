"""The ports of the domain on real libraries: one file per technology."""
