"""Questions and answers of the embedded lab, one module for each group of topics, the four languages side by side."""
