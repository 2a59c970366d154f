"""What a dataset holds and what looks wrong in it: the basis of `lightwam init`."""
