"""From statistics to corrections: one bias per gallery item, or new scores."""
