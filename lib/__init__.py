"""The workbook's library."""

import warnings

# Progress bars are lines of text, so that they can be read in a log; tqdm would miss ipywidgets in every notebook.
warnings.filterwarnings("ignore", message="IProgress not found")
