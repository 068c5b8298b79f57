# TAP of one program to one line for each assertion: verdict, program, text. `program` is its name, `ended` its exit code.
# Names and numbers that are others every time are made the same.
function line(verdict, text) {
  gsub(/[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+-[0-9a-f]+/, "ID", text)
  gsub(/[0-9][0-9][0-9][0-9][0-9]+/, "N", text)
  gsub(/\t/, " ", text)
  print verdict "\t" program "\t" text
}
/^(not )?ok( |$)/ {
  verdict = /^not ok/ ? "fail" : "pass"
  text = $0
  sub(/^(not )?ok *[0-9]* *(- )?/, "", text)
  if (sub(/^# SKIP */, "", text)) verdict = "skip"
  line(verdict, text)
}
# A program that gives up makes no assertion of it.
END { line(ended == 0 ? "pass" : "fail", "(ends with success)") }
