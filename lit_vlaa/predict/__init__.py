"""`lit-vlaa predict MODEL`: answers to one question on images, or to a file of them."""
