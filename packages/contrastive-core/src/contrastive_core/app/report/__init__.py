"""Building blocks of HTML reports. Needs matplotlib and Pillow (extra `app`)."""
