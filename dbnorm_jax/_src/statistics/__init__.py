"""What a bank says about each gallery item: made, merged, grown."""
