"""What `afterclick bench` runs: real servers under real load. Not part of the wheel."""
