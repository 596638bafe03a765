"""What the maps should hold: views' resources and workloads in, map entries and named rejections out (pure)."""
