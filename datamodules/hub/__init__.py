"""The released data set: from the Hub to checked files and unpacked images."""
