"""Who made a hub, what a bank item is worth, what looks planted."""
