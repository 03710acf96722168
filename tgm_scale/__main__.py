from tgm_scale.cli import main

raise SystemExit(main())
