"""What people look at: masks on their images, curves, and the page that holds them."""
