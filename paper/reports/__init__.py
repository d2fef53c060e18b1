"""Tables, figures and findings of chapters 5 to 8, from result files alone: nothing here measures."""
