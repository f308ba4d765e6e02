from roclab.cli import main

main()
