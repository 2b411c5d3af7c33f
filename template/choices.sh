# What template/choices says, for the scripts of the template.
# shellcheck shell=bash

# The choices that a project has.
choices() { sed -n 's/^\([a-z]*\) .*/\1/p' template/choices | grep -vx template | uniq; }

# owned CHOICE: its files and folders.
owned() {
    local path word
    sed -n "s/^$1 //p" template/choices | while read -r path word; do
        case $path in
            *:) grep -lw "$word" "${path%:}"/* | LC_ALL=C sort ;;
            *) printf '%s\n' "$path" ;;
        esac
    done
}
