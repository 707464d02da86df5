"""Black boxes that score images. Nothing here is differentiated."""
