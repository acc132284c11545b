"""Reports: figures, image sheets, feature maps, and the HTML page that contains them."""
