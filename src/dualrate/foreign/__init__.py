"""Models of other libraries: their conventions, and networks around them that speak ours."""
