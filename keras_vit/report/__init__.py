"""Pages that people read: of a run, of several runs side by side, of predictions. Each is one file that opens without a network."""
