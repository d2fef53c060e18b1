"""What turns runs into the paper: experiments, tables, figures, pages. Uses kwslib; nothing of kwslib knows of it."""
