"""From files of any kind to arrays, and what they hold: sets, pairs, labels."""
