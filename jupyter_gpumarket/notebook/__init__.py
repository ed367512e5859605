"""The notebook's door: `%%gpu` and `%gpu`, the cost line, and the cleaning of what a node sends to be displayed."""
