"""A run on the Hugging Face hub: its model card, and the files that others load."""
