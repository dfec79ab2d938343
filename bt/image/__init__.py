"""Guest images: from a file to segments, entry, symbols and patch tables."""
