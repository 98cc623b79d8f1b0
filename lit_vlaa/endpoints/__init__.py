"""What users of chat endpoints share: replies on disk, whether a server is gone, and calls under a rate limit."""
