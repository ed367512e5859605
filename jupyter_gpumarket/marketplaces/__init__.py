"""One file per marketplace under one contract (`base.Marketplace`)."""
