"""How much memory KSM saves: records, tables, estimates, forecasts, reports."""
