"""Building blocks of command-line packages: commands, flags, data checks and reports (extra `app`)."""
