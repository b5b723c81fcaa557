"""Networks. They know neither schedule nor plan."""
