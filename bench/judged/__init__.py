"""Small collections with queries whose right answers are known, and measures of how well they are found."""
