"""What every part may use: files that are whole or not there, the cache folder."""
