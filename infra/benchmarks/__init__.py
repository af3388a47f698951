"""What `afterclick bench` runs: real servers, real load, figures that come out of them."""
