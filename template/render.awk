# Renders a sibling as cargo-generate does: the few of its words that template/sibling.awk writes.
# NAME, DESCRIPTION and WITHOUT come from the environment.

function value(name) {
    if (name == "project-name") return ENVIRON["NAME"]
    if (name == "description") return ENVIRON["DESCRIPTION"]
    if (name == "without") return ENVIRON["WITHOUT"]
    return captured
}
# The part between the first pair of quotation marks, which is taken off `tag`.
function quoted(    text) {
    sub(/^[^"]*"/, "", tag)
    text = tag
    sub(/".*/, "", text)
    sub(/^[^"]*"/, "", tag)
    return text
}
function out(text) { if (shown) { if (capturing) captured = captured text; else printf "%s", text } }

{ all = all $0 "\n" }

END {
    shown = 1
    # A sibling that ends in a word of its own has no end of line there.
    if (all ~ /%[}]\n$/) all = substr(all, 1, length(all) - 1)
    while ((at = match(all, /[{][{%]/)) > 0) {
        out(substr(all, 1, at - 1))
        all = substr(all, at)
        close_at = index(all, substr(all, 2, 1) == "{" ? "}}" : "%}")
        tag = substr(all, 3, close_at - 3)
        kind = substr(all, 2, 1)
        all = substr(all, close_at + 2)
        gsub(/^ +| +$/, "", tag)
        if (kind == "{") out(value(tag))
        else if (tag == "raw") {
            at = index(all, "{% endraw %}")
            out(substr(all, 1, at - 1))
            all = substr(all, at + 12)
        }
        else if (tag == "capture own") { capturing = 1; captured = "" }
        else if (tag == "endcapture") capturing = 0
        else if (tag ~ /^unless /) shown = index(value("without"), quoted()) == 0
        else if (tag ~ /^if project-name > .* and /) { low = quoted(); shown = (value("project-name") "" > low "") && (value("project-name") "" <= quoted() "") }
        else if (tag ~ /^if project-name > /) shown = value("project-name") "" > quoted() ""
        else if (tag == "endunless" || tag == "endif") shown = 1
        else { print "unknown tag: " tag >"/dev/stderr"; exit 1 }
    }
    out(all)
}
