"""A local web page to try the package: `d2net serve`."""
