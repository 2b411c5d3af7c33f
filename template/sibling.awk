# Turns a file with marks into its sibling for cargo-generate. With `file`, the file's name, and `version`, the template's.

# A line as liquid leaves it, with the project's name in place of the template's.
function kept(line) {
    if (line ~ /[{][{%]/) return "{% raw %}" line "{% endraw %}"
    gsub(/[Tt]welvefold/, "{{project-name}}", line)
    return line
}
# Says a line that goes with a choice, or with none.
function say(choice, line) {
    if (choice != now) {
        if (now != "") printf "%s", "{% endunless %}"
        if (choice != "") printf "%s", "{% unless without contains \"" choice "\" %}"
        now = choice
    }
    print line
}
function indent(line) { match(line, /^ */); return RLENGTH }

# A document knows no comments: what names the sample in it is the sample's, each entry from its brace to the other.
file == "openapi.json" {
    if (closes != "") {
        say("sample", $0)
        if ($0 ~ closes) closes = ""
    } else if ($0 ~ /[Rr]eminder/) {
        say("sample", $0)
        if ($0 ~ /[{[]$/) closes = "^" sprintf("%*s", indent($0), "") "[]}],?$"
    } else say("", kept($0))
    next
}
# The lock is in order of names. The project's own entry is where its name belongs.
file == "Cargo.lock" { lock[++lines] = $0; next }

/^[ \t]*(\/\/|#|<!--) begin: [a-z]+( -->)?$/ { match($0, /: [a-z]+/); block = substr($0, RSTART + 2, RLENGTH - 2); next }
/^[ \t]*(\/\/|#|<!--) end: [a-z]+( -->)?$/ { block = ""; next }
block == "template" { next }
/(\/\/|#|<!--) only: [a-z]+( -->)?$/ {
    match($0, /[ \t]*(\/\/|#|<!--) only: [a-z]+( -->)?$/)
    text = substr($0, 1, RSTART - 1)
    mark = substr($0, RSTART)
    match(mark, /: [a-z]+/)
    choice = substr(mark, RSTART + 2, RLENGTH - 2)
    if (choice != "template") say(choice, kept(text))
    next
}
/^[ \t]*(\/\/|#|<!--) project: / {
    sub(/(\/\/|#|<!--) project: /, "")
    sub(/ -->$/, "")
    gsub(/VERSION/, version)
    say(block, $0)
    next
}
{ say(block, kept($0)) }

END {
    if (file == "Cargo.lock") {
        for (i = 1; i <= lines; i++) if (lock[i] == "[[package]]" && lock[i + 1] == "name = \"twelvefold\"") own = i
        for (last = own; last < lines && lock[last] != ""; last++);
        printf "%s", "{% capture own %}"
        for (i = own; i <= last; i++) {
            # Each project begins with it, whatever the template's own version is.
            if (lock[i] ~ /^version = /) lock[i] = "version = \"0.1.0\""
            print kept(lock[i])
        }
        printf "%s", "{% endcapture %}"
        before = ""
        for (i = 1; i <= lines; i++) {
            if (i == own) i = last + 1
            if (lock[i] == "[[package]]") {
                name = lock[i + 1]
                gsub(/^name = "|"$/, "", name)
                if (name != before) printf "%s", "{% if project-name > \"" before "\" and project-name <= \"" name "\" %}{{own}}{% endif %}"
                before = name
            }
            if (i <= lines) print lock[i]
        }
        printf "%s", "{% if project-name > \"" before "\" %}\n{{own}}{% endif %}"
    } else if (now != "") printf "%s", "{% endunless %}"
}
