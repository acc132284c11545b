"""Reports: figures, sheets of images, maps of features, and the HTML page that holds them."""
