"""Media and records become a catalogue and features: readers, decoding, extractors, store."""
