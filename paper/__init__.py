"""What turns runs into the paper: experiments, tables, figures, pages. Uses kwslib; nothing of kwslib knows of it.

execute, profile            a stage of the pipeline: a notebook, run with the parameters of a profile
search, grid, robustness    experiments with clips; benchmarks/ has what is timed, spotting/ what hears streams
candidates                  shapes of Mamba-Light that only the search trains
results … facts             what the runs of a profile say: means, intervals, comparisons
tables, figures, reports/   the tables and figures of the paper's chapters
pages                       README.md and docs, from templates/
prove, locks, reproduction  whether the committed results are those of this code
"""
