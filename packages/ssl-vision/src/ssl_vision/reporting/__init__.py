"""What people look at: curves, sheets of images, maps of features, and the page that holds them."""
