package org.pocketphi.bench

import android.app.Activity
import android.content.Intent
import android.view.View
import android.view.WindowManager
import android.widget.ImageButton
import android.widget.TextView
import java.io.File

/** What the screens share. */
fun Activity.keepScreenOn(on: Boolean) {
    val flag = WindowManager.LayoutParams.FLAG_KEEP_SCREEN_ON
    if (on) window.addFlags(flag) else window.clearFlags(flag)
}

/** The header's title and, where the screen has one above it, its way back. */
fun Activity.header(title: CharSequence, back: Boolean = true) {
    findViewById<TextView>(R.id.title).text = title
    val arrow = findViewById<View>(R.id.back)
    arrow.visibility = if (back) View.VISIBLE else View.GONE
    arrow.setOnClickListener { finish() }
}

fun Activity.action(id: Int, icon: Int, description: Int, onClick: () -> Unit) {
    val button = findViewById<ImageButton>(id)
    button.visibility = View.VISIBLE
    button.setImageResource(icon)
    button.contentDescription = getString(description)
    button.setOnClickListener { onClick() }
}

fun TextView.showOrHide(text: CharSequence?) {
    this.text = text
    visibility = if (text.isNullOrEmpty()) View.GONE else View.VISIBLE
}

fun View.visible(visible: Boolean) {
    visibility = if (visible) View.VISIBLE else View.GONE
}

/** A button of a picture alone, which does not show by itself that it is disabled. */
fun View.enable(enabled: Boolean) {
    isEnabled = enabled
    alpha = if (enabled) 1f else 0.4f
}

/** Lets the person send a result's file to another app. */
fun Activity.share(file: File) {
    val uri = ShareProvider.uri(file)
    val send = Intent(Intent.ACTION_SEND)
        .setType(ShareProvider.TYPE)
        .putExtra(Intent.EXTRA_STREAM, uri)
        .putExtra(Intent.EXTRA_SUBJECT, file.name)
        .addFlags(Intent.FLAG_GRANT_READ_URI_PERMISSION)
    // Older systems grant the reading only of what is in the clip.
    send.clipData = android.content.ClipData.newRawUri(file.name, uri)
    startActivity(Intent.createChooser(send, getString(R.string.share)))
}
