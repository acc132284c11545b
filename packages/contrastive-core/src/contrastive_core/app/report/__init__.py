"""Building blocks of HTML reports, which need matplotlib and Pillow (extra `app`)."""
