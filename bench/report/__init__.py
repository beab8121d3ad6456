"""Reports: from records to tables, declared contrasts and figures. Nothing here is read by a run."""
