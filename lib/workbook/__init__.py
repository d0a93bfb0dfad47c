"""The workbook around the science: profiles, artifacts, commands, scorecard, report."""
